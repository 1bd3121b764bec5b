"""What is chosen in the panel, kept in a node of the scene, so that it is saved and loaded with it. Knows no Qt."""

import slicer

NAME = "VLSMSegmenter"
NODES = ("volume", "segmentation", "roi")
TEXTS = ("adapter", "base", "prompts", "plane", "window", "threshold", "largest_only", "holes_filled", "smoothed")


def find(scene: "slicer.vtkMRMLScene") -> "slicer.vtkMRMLScriptedModuleNode | None":
    """Return the scene's parameter node, where it has one."""
    return scene.GetSingletonNode(NAME, "vtkMRMLScriptedModuleNode")


def write(scene: "slicer.vtkMRMLScene", values: dict[str, object]) -> None:
    """Keep values: nodes or None for `NODES`, texts for `TEXTS`."""
    node = find(scene)
    if node is None:
        node = scene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        node.SetSingletonTag(NAME)  # a scene that is loaded takes the place of what is there
        node.SetModuleName(NAME)
        node.SetName(NAME)
        node = scene.AddNode(node)
    for name in NODES:
        if name in values:
            node.SetNodeReferenceID(name, values[name].GetID() if values[name] else None)
    for name in TEXTS:
        if name in values:
            node.SetParameter(name, values[name])


def read(scene: "slicer.vtkMRMLScene") -> dict[str, object]:
    """Return the values that were kept; nothing where none were."""
    node = find(scene)
    if node is None:
        return {}
    nodes = {name: node.GetNodeReference(name) for name in NODES}
    return nodes | {name: node.GetParameter(name) for name in TEXTS if name in node.GetParameterNames()}
