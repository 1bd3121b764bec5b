"""The page that describes the server's routes. It needs no script and loads nothing from elsewhere."""

from html import escape

STYLE = "body{font:16px sans-serif;max-width:60em;margin:2em auto}code{background:#eee;padding:.1em .3em}"


def describe_routes(openapi: dict) -> str:
    """Return HTML of an OpenAPI description."""
    information = openapi["info"]
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{escape(information['title'])}</title><style>{STYLE}</style>",
        f"<h1>{escape(information['title'])} {escape(information['version'])}</h1>",
        _text(information["description"]),
        '<p>The same for machines: <a href="openapi.json">openapi.json</a></p>',
    ]
    for path, methods in openapi["paths"].items():
        for method, route in methods.items():
            parts += [f"<h2><code>{method.upper()} {escape(path)}</code></h2>", _text(route.get("description", ""))]
            parts += _parameters(route.get("parameters", []))
    parts += [_schema(name, schema) for name, schema in openapi.get("components", {}).get("schemas", {}).items()]
    return "\n".join(parts)


def _parameters(parameters: list[dict]) -> list[str]:
    rows = [
        f"<li><code>{escape(p['name'])}</code> ({p['in']}) {escape(p.get('description', ''))}" for p in parameters
    ]
    return ["<ul>", *rows, "</ul>"] if rows else []


def _schema(name: str, schema: dict) -> str:
    rows = [
        f"<li><code>{escape(key)}</code> {escape(value.get('description', ''))}"
        for key, value in schema.get("properties", {}).items()
    ]
    return f"<h2>{escape(name)}</h2>{_text(schema.get('description', ''))}<ul>{''.join(rows)}</ul>"


def _text(text: str) -> str:
    return "".join(f"<p>{escape(paragraph)}</p>" for paragraph in text.split("\n\n"))
