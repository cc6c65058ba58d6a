"""Network parts that know nothing of tasks: backbone, necks, blocks."""
