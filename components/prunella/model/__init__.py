"""The model that is trained, its losses, and how it is spread over ranks."""
