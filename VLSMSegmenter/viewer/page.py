"""What the page shows. Texts and places only: what things do is in `actions`."""

from collections.abc import Callable
from pathlib import Path

from trame.ui.vuetify3 import VAppLayout
from trame.widgets import client, html
from trame.widgets import vuetify3 as v
from trame_slicer.app.logic.slice_view_logic import connect_slice_view_slider_to_state
from VLSMSegmenterLib.shared import choices

from viewer.actions import Actions
from viewer.files import KINDS
from viewer.scene import VIEWS, WINDOWS

STATIC = Path(__file__).with_name("static")
STATE = {
    "trame__title": "VLSM Segmenter",
    "dark": True,
    # scans: what is open, which is shown, what it is
    "scans": [],
    "scan": None,
    "facts": "",
    "flat": False,
    "opening": False,
    "unclear": False,
    "series": "",
    "frame": "",
    "resample": False,
    # a run: what is chosen and asked for
    "adapters": [choices.NO_ADAPTER],
    "adapter": "",
    "card": "",
    "bases": [choices.OWN],
    "base": choices.OWN,
    "planes": [choices.OWN, *choices.PLANES],
    "plane": choices.OWN,
    "windows": [choices.OWN, *choices.WINDOWS],
    "input_window": choices.OWN,  # `window` is the browser's
    "largest_only": False,
    "holes_filled": False,
    "smoothed": False,
    "prompts": "",
    "suggestions": [],
    "recent": [],
    # how it goes
    "busy": False,
    "done": 0,
    "total": 0,
    "message": "",
    "wrong": False,
    "again": [],
    # what was found
    "segments": [],
    "chosen": [],
    "threshold": 50,
    "adjustable": False,
    "can_undo": False,
    # how it looks
    "presets": list(WINDOWS),
    "preset": "auto",
    "opacity": 40,
    "surfaces": True,
    "probability": False,
}
SAVED_AS = {
    ".seg.nrrd": "Slicer segmentation (.seg.nrrd)",
    ".nii.gz": "NIfTI (.nii.gz, one for each segment)",
    ".dcm": "DICOM segmentation (.dcm)",
    ".rt.dcm": "DICOM RT structure set (.rt.dcm)",
    ".png": "Picture of the views (.png)",
}
COMPACT = {"density": "compact", "hide_details": True, "variant": "outlined"}


class Page:
    """Builds the page for a server."""

    def __init__(self, server, actions: Actions):
        self._actions = actions
        server.enable_module(
            {
                "serve": {"viewer_static": str(STATIC)},
                "scripts": ["viewer_static/viewer.js"],
                "styles": ["viewer_static/viewer.css"],
            }
        )
        with VAppLayout(server) as layout:
            layout.root.theme = ("dark ? 'dark' : 'light'",)
            with v.VNavigationDrawer(permanent=True, width=348, classes="panel"):
                self._title()
                with html.Div(classes="section"):
                    self._scan()
                with html.Div(classes="section"):
                    self._adapter()
                with html.Div(classes="section"):
                    self._prompt()
                with html.Div(classes="section results"):
                    self._results()
            with v.VMain(classes="stage"):
                self._toolbar()
                with html.Div(classes=("flat ? 'views flat' : 'views'",)):
                    for name, definition in VIEWS.items():
                        with html.Div(classes="view", raw_attrs=[f'data-view="{name}"']):
                            client.ServerTemplate(name=definition.singleton_tag)

    def _title(self) -> None:
        with html.Div(classes="d-flex align-center px-3 pt-2 pb-1"):
            html.Div("VLSM Segmenter", classes="text-subtitle-1 font-weight-medium")
            v.VSpacer()
            html.Div("research only", classes="text-caption text-medium-emphasis mr-2")
            v.VBtn(
                icon=("dark ? 'mdi-weather-sunny' : 'mdi-weather-night'",),
                title=("dark ? 'light page' : 'dark page'",),
                click="dark = !dark",
                **_small("theme"),
            )

    def _scan(self) -> None:
        with html.Div(classes="d-flex align-center ga-1"):
            v.VSelect(
                v_model=("scan",),
                items=("scans",),
                label="Scan",
                id="scan",
                placeholder="none is open",
                persistent_placeholder=True,
                loading=("opening",),
                disabled=("busy",),
                **COMPACT,
            )
            v.VBtn(
                icon="mdi-folder-open-outline",
                title="Open a file, several DICOM files, or a ZIP file; or drop them on the page",
                click="window.vlsm.choose()",
                disabled=("opening || busy",),
                **_small("open"),
            )
            v.VBtn(
                icon="mdi-close",
                title="Close this scan with its segments",
                click=self._actions.close_scan,
                disabled=("!scan || busy",),
                **_small("close"),
            )
        html.Div("{{ facts }}", id="facts", classes="text-caption text-medium-emphasis mt-1", v_show="facts")
        with html.Div(classes="d-flex align-center ga-1 mt-2", v_if="unclear"):
            for name, label in (("series", "Series"), ("frame", "Volume")):
                v.VTextField(v_model=(name,), label=label, id=name, **COMPACT)
            v.VCheckbox(
                v_model=("resample",), label="Resample", id="resample", density="compact", hide_details=True
            )
            v.VBtn("Open", id="open-chosen", size="small", variant="tonal", click=self._actions.open_chosen)

    def _adapter(self) -> None:
        with html.Div(classes="d-flex align-center ga-1"):
            v.VSelect(v_model=("adapter",), items=("adapters",), label="Adapter", id="adapter", **COMPACT)
            v.VBtn(
                icon="mdi-refresh", title="Ask the engine again", click=self._actions.ask_again, **_small("refresh")
            )
        with html.Details(classes="text-caption mt-1"):
            html.Summary("Card, base, plane and window")
            html.Div(v_html=("card",), id="card", classes="text-medium-emphasis my-1")
            for name, label, items in (
                ("base", "Base", "bases"),
                ("plane", "Plane", "planes"),
                ("input_window", "Window", "windows"),
            ):
                v.VSelect(v_model=(name,), items=(items,), label=label, id=name, classes="mt-2", **COMPACT)

    def _prompt(self) -> None:
        v.VTextField(
            v_model=("prompts",),
            label="What do you want to see?",
            placeholder="brain; grey matter",
            id="prompts",
            clearable=True,
            **COMPACT,
        )
        with html.Div(classes="suggestions mt-1"):
            v.VChip(
                "{{ suggestion.text }}",
                v_for="suggestion in suggestions",
                key="suggestion.text",
                size="small",
                density="compact",
                prepend_icon=("suggestion.recent ? 'mdi-history' : undefined",),
                variant=(
                    "(prompts || '').split(';').map(p => p.trim()).includes(suggestion.text) ? 'flat' : 'tonal'",
                ),
                click=(self._actions.suggest, "[suggestion.text]"),
            )
        with html.Div(classes="d-flex ga-2 mt-2", v_if="!again.length"):
            v.VBtn(
                "Segment",
                id="segment",
                v_show="!busy",
                color="primary",
                size="small",
                click=self._actions.segment,
                disabled=("!scan || !(prompts || '').trim() || opening",),
                classes="flex-grow-1",
            )
            v.VBtn(
                "Cancel",
                id="cancel",
                v_show="busy",
                variant="tonal",
                size="small",
                click=self._actions.cancel,
                classes="flex-grow-1",
            )
            v.VBtn(
                "Undo",
                id="undo",
                variant="tonal",
                size="small",
                click=self._actions.undo,
                disabled=("!can_undo || busy",),
            )
        with html.Div(v_else=True, id="again", classes="mt-2"):
            html.Div("There are segments of {{ again.join(', ') }} already.", classes="text-caption")
            with html.Div(classes="d-flex ga-2 mt-1"):
                for label, action in (
                    ("Replace", (self._actions.run, "[true]")),
                    ("Keep both", (self._actions.run, "[false]")),
                    ("Back", self._actions.cancel),
                ):
                    v.VBtn(label, size="small", variant="tonal", click=action)
        v.VProgressLinear(
            v_show="busy || opening",
            id="progress",
            model_value=("total ? 100 * done / total : 0",),
            indeterminate=("!total",),
            color="primary",
            classes="mt-2",
        )
        html.Div("{{ message }}", id="message", classes=("wrong ? 'message wrong' : 'message'",))

    def _results(self) -> None:
        with html.Div(v_show="adjustable", classes="mb-1"):
            with html.Div(classes="d-flex align-center text-caption"):
                html.Div("Threshold {{ (threshold / 100).toFixed(2) }}", id="threshold-value")
                v.VSpacer()
                html.Div(
                    "{{ chosen.length ? 'of ' + segments.find(s => s.id == chosen[0])?.name : 'of all segments' }}",
                    classes="text-medium-emphasis",
                )
            v.VSlider(
                v_model=("threshold",), min=1, max=99, step=1, id="threshold", density="compact", hide_details=True
            )
            with html.Div(classes="d-flex ga-3 clean-up"):
                for name, label in (
                    ("largest_only", "largest part"),
                    ("holes_filled", "no holes"),
                    ("smoothed", "smooth"),
                ):
                    v.VCheckbox(v_model=(name,), label=label, id=name, density="compact", hide_details=True)
        with html.Table(classes="segments", v_show="segments.length"):
            with html.Thead(), html.Tr():
                for label in ("", "Segment", "Presence", "Size", "", ""):
                    html.Th(label)
            with html.Tbody(), html.Tr(v_for="segment in segments", key="segment.id", **_row(self._actions)):
                with html.Td():
                    html.Input(
                        type="color",
                        value=("segment.color",),
                        title="Colour",
                        change="trigger('paint', [segment.id, $event.target.value])",
                        raw_attrs=["@click.stop"],
                    )
                with html.Td():
                    html.Input(
                        classes="name",
                        value=("segment.name",),
                        title="Name",
                        change="trigger('rename', [segment.id, $event.target.value])",
                        raw_attrs=["@click.stop"],
                    )
                html.Td("{{ segment.presence }}", classes="number")
                html.Td("{{ segment.size }}", classes="number size")
                with html.Td():
                    v.VBtn(
                        icon=("segment.visible ? 'mdi-eye' : 'mdi-eye-off-outline'",),
                        title=("segment.visible ? 'Hide' : 'Show'",),
                        click=(self._actions.toggle, "[segment.id]"),
                        raw_attrs=["@click.stop"],
                        **_small(),
                    )
                with html.Td():
                    v.VBtn(
                        icon="mdi-delete-outline",
                        title="Delete",
                        click=(self._actions.delete, "[segment.id]"),
                        disabled=("busy",),
                        **_small(),
                    )

    def _toolbar(self) -> None:
        with html.Div(classes="toolbar"):
            v.VSelect(
                v_model=("preset",),
                items=("presets",),
                label="Shown window",
                id="preset",
                classes="preset",
                **COMPACT,
            )
            html.Div("Opacity", classes="text-caption ml-2")
            v.VSlider(
                v_model=("opacity",),
                min=0,
                max=100,
                step=1,
                id="opacity",
                classes="opacity",
                density="compact",
                hide_details=True,
            )
            for name, label in (("surfaces", "Surfaces"), ("probability", "Probability")):
                v.VSwitch(
                    v_model=(name,),
                    label=label,
                    id=name,
                    density="compact",
                    hide_details=True,
                    color="primary",
                    classes="switch",
                )
            v.VSpacer()
            v.VBtn(
                icon="mdi-fit-to-page-outline",
                title="Fit the views",
                click=self._actions.reset_views,
                **_small("fit"),
            )
            v.VBtn("Save", prepend_icon="mdi-download", id="save", size="small", variant="tonal")
            with v.VMenu(activator="#save"), v.VList(density="compact"):
                for kind in KINDS:
                    v.VListItem(
                        title=SAVED_AS[kind],
                        click=f"window.vlsm.save('{kind}')",
                        raw_attrs=[f'data-kind="{kind}"'],
                    )


def over_slice(server) -> Callable:
    """Return what puts a name and a slider over a slice view."""

    def around(name: str, view) -> None:
        names = connect_slice_view_slider_to_state(server, view).name
        html.Div(name, classes="view-name")
        with html.Div(classes="view-slider"):
            v.VSlider(
                v_model=(names.value,),
                min=(names.min_value,),
                max=(names.max_value,),
                step=(names.step,),
                id=f"slice-{name}",
                density="compact",
                hide_details=True,
                thumb_size=12,
                track_size=2,
                theme="dark",
            )
            html.Div(f"{{{{ {names.value}.toFixed(1) }}}} mm", classes="view-place")

    return around


def over_3d(server) -> Callable:
    """Return what puts a name over the 3-D view."""
    return lambda name, view: html.Div(name, classes="view-name")


def _small(identifier: str | None = None) -> dict:
    named = {"id": identifier} if identifier else {}
    return {"size": "x-small", "variant": "text", "density": "comfortable", **named}


def _row(actions: Actions) -> dict:
    return {
        "classes": ("chosen.includes(segment.id) ? 'chosen' : ''",),
        "click": (actions.choose, "[segment.id]"),
        "raw_attrs": [':data-voxels="segment.voxels"'],
    }
