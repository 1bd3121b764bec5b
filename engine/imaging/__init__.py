"""Files to arrays with geometry, and back. Nothing here knows of nets or torch."""
