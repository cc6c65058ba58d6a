"""Task-independent network parts: backbone, necks, blocks."""
