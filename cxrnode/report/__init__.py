"""Result objects: Structured Report, Grad-CAM secondary capture, and the node's own checker."""
