"""The names that options may take. Needs nothing but Python, so that they are known before PyTorch is loaded."""

DEVICES = ("auto", "cuda", "mps", "cpu")
PRECISIONS = ("fp32", "bf16", "fp16")
SPLITS = ("train", "val", "test")
METHODS = ("shallow", "dense", "dense-everywhere", "telescopic", "lora", "decoder", "full", "san", "cris")
PLACEMENTS = ("VL", "V", "VLC")  # vision, language, conditioning; the first is the default
LOSSES = ("logits", "reference")
PLACES_OF_ACTIVATIONS = ("auto", "memory", "disk", "none")
BASE_ALONE = "none"  # in place of an adapter, or of a method
SMALL_BASE = "small"  # in place of a base: one with random weights, made when it is needed
