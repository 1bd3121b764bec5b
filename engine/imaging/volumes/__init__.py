"""Arrays with their place in the patient: volumes, slices of them, grey values, segments."""
