"""What results are worth: figures against reference masks, and pictures of them."""
