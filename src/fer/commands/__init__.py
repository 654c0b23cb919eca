"""One module a command, each with run(cfg, typed); cli.py names them."""
