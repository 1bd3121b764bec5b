"""What `fuzz.py` is made of: mutations, the kinds of input, and the process that meets them."""
