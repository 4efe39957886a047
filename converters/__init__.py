"""Sources of data: anything -> episodes. One module or package per kind, and a table."""
