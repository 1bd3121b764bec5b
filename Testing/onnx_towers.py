"""A tiny DINOv2 as the ONNX file that a package might ship."""

import re
from pathlib import Path

import onnx
import torch
from transformers import Dinov2Config, Dinov2Model

SIZE = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3}
OLD_NAMES = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}


def new_dinov2() -> Dinov2Model:
    torch.manual_seed(0)
    network = Dinov2Model(Dinov2Config(**SIZE, mlp_ratio=2, image_size=56, patch_size=14)).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight += torch.randn_like(weight) * (0.02 if "embeddings" in name else 0.1)
    return network


def write_onnx(path: Path, network: Dinov2Model) -> None:
    """Write the weights as PyTorch's exporter does: matrices transposed, nameless, known by the products."""
    state = network.state_dict()
    positions = state.pop("embeddings.position_embeddings")
    arrays = {"onnx::Concat_1": positions[:, :1], "onnx::Reshape_2": positions[:, 1:]}
    nodes = []
    for name, weight in state.items():
        for new, old in OLD_NAMES.items():
            name = name.replace(new, old)
        matrix = re.fullmatch(r"(encoder\..*)\.weight", name)
        if matrix and weight.ndim == 2:
            arrays[f"onnx::MatMul_{len(nodes)}"] = weight.T
            parts = re.sub(r"(?<!layer)\.", "/", matrix[1])  # "encoder/layer.0/mlp/fc1"
            inputs, product = ["x", f"onnx::MatMul_{len(nodes)}"], f"/backbone/{parts}/MatMul"
            nodes.append(onnx.helper.make_node("MatMul", inputs, ["y"], name=product))
        else:
            arrays[f"backbone.{name}"] = weight
    tensors = [onnx.numpy_helper.from_array(a.contiguous().numpy(), name) for name, a in arrays.items()]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "tower", [], [], tensors)), path)
