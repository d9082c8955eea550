"""A static site that shows what an output holds, to be opened in a browser without a server."""
