"""One module a command, each with run(cfg, given_keys); cli.py names them."""
