"""What is done with folders of pictures before a training: plans to show first, work that leaves nothing half, undo."""
