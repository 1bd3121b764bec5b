"""The nets: tensors in, tensors out. Nothing here knows of files, volumes or commands."""
