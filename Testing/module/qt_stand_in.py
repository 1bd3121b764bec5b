"""A Qt stand-in: the modules `qt` and `ctk` of Slicer and a few of its widgets, over PySide6. It is not Slicer.

Slicer's PythonQt has properties as attributes (`label.text`) where PySide6 has methods; the classes are changed to
PythonQt's way, for this process. Of Slicer's own widgets there is what the panel uses.
"""

import inspect
import os
import sys
import types

import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
REASON = "PySide6-Essentials is not installed, or lacks a library of the system (libegl1, libxkbcommon0)"
QtCore = pytest.importorskip("PySide6.QtCore", reason=REASON, exc_type=ImportError)
QtGui = pytest.importorskip("PySide6.QtGui", reason=REASON, exc_type=ImportError)
QtWidgets = pytest.importorskip("PySide6.QtWidgets", reason=REASON, exc_type=ImportError)
QtUiTools = pytest.importorskip("PySide6.QtUiTools", reason=REASON, exc_type=ImportError)

KEEP_AS_METHODS = {"sizeHint", "minimumSizeHint"}  # Qt itself calls these
MODULES = (QtCore, QtGui, QtWidgets)
HEADER_HEIGHT = 24

application = QtWidgets.QApplication.instance() or QtWidgets.QApplication(["stand-in"])
application.setStyle("Fusion")
application.setOrganizationName("VLSMSegmenter tests")


def _as_attribute(name: str) -> property:
    return property(lambda self: self.property(name), lambda self, value: self.setProperty(name, value))


def _give_properties(kind: type) -> None:
    described = kind.staticMetaObject
    for number in range(described.propertyOffset(), described.propertyCount()):
        name = described.property(number).name()
        if name not in KEEP_AS_METHODS:
            setattr(kind, name, _as_attribute(name))


for module in MODULES:
    for kind in [getattr(module, name) for name in dir(module)]:
        if inspect.isclass(kind) and issubclass(kind, QtCore.QObject):
            _give_properties(kind)
QtCore.QObject.name = _as_attribute("objectName")
QtCore.QObject.className = lambda self: self.metaObject().className()


class ctkCollapsibleButton(QtWidgets.QWidget):
    """A headline that shows or hides what is under it."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self._text, self._collapsed = "", False
        self.setContentsMargins(0, HEADER_HEIGHT, 0, 0)

    def _set_text(self, text: str) -> None:
        self._text = text
        self.update()

    def _set_collapsed(self, collapsed: bool) -> None:
        self._collapsed = collapsed
        self.setMaximumHeight(HEADER_HEIGHT if collapsed else 16777215)

    text = QtCore.Property(str, lambda self: self._text, _set_text)
    collapsed = QtCore.Property(bool, lambda self: self._collapsed, _set_collapsed)

    def paintEvent(self, event) -> None:
        painter, option = QtWidgets.QStylePainter(self), QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        option.rect = QtCore.QRect(0, 0, self.size.width(), HEADER_HEIGHT - 2)
        option.text = f"{'▸' if self._collapsed else '▾'} {self._text}"
        painter.drawControl(QtWidgets.QStyle.CE_PushButton, option)


class qMRMLNodeComboBox(QtWidgets.QComboBox):
    """Chooses a node of the scene. It has no events of the scene: `setMRMLScene` reads the nodes that are there."""

    currentNodeChanged = QtCore.Signal(object)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._values = {"nodeTypes": [], "noneEnabled": False, "noneDisplay": "None"}
        self._nodes: list = []
        self.currentIndexChanged.connect(lambda index: self.currentNodeChanged.emit(self.currentNode()))

    def _kept(kind: str, name: str):
        return QtCore.Property(
            kind, lambda self: self._values.get(name), lambda self, v: self._values.update({name: v})
        )

    nodeTypes, noneDisplay = _kept("QStringList", "nodeTypes"), _kept("QString", "noneDisplay")
    noneEnabled, addEnabled = _kept("bool", "noneEnabled"), _kept("bool", "addEnabled")
    removeEnabled, showChildNodeTypes = _kept("bool", "removeEnabled"), _kept("bool", "showChildNodeTypes")

    def setMRMLScene(self, scene) -> None:
        self._scene = scene
        found = [
            scene.GetNthNodeByClass(n, k) for k in self.nodeTypes for n in range(scene.GetNumberOfNodesByClass(k))
        ]
        nodes = [node for node in found if node.GetClassName() in self.nodeTypes]
        self.blockSignals(True)
        self.clear()
        self._nodes = ([None] if self.noneEnabled else []) + nodes
        self.addItems([node.GetName() if node else self.noneDisplay for node in self._nodes])
        self.blockSignals(False)
        self.currentNodeChanged.emit(self.currentNode())

    def currentNode(self):
        return self._nodes[self.currentIndex] if 0 <= self.currentIndex < len(self._nodes) else None

    def setCurrentNode(self, node) -> None:
        if node not in self._nodes:
            self.setMRMLScene(self._scene)
        self.setCurrentIndex(self._nodes.index(node))


class qMRMLWidget(QtWidgets.QWidget):
    def setMRMLScene(self, scene) -> None:
        for child in self.findChildren(qMRMLNodeComboBox):
            child.setMRMLScene(scene)


class QUiLoader(QtUiTools.QUiLoader):
    def load(self, file):
        for kind in (ctkCollapsibleButton, qMRMLNodeComboBox, qMRMLWidget):
            self.registerCustomWidget(kind)
        root = super().load(file)
        root.kept = root.findChildren(QtCore.QObject)  # PySide6 forgets the types of those that nobody holds
        return root


def install(patch: pytest.MonkeyPatch) -> None:
    """Let `import qt` and `import ctk` find the stand-in."""
    qt, ctk = types.ModuleType("qt"), types.ModuleType("ctk")
    for module in MODULES:
        vars(qt).update({name: getattr(module, name) for name in dir(module) if name.startswith("Q")})
    qt.QUiLoader, ctk.ctkCollapsibleButton = QUiLoader, ctkCollapsibleButton
    patch.setitem(sys.modules, "qt", qt)
    patch.setitem(sys.modules, "ctk", ctk)
