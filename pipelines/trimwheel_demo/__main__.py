"""`python -m trimwheel_demo play|down`: what the Makefile calls."""

from trimwheel_demo.commands import demo

if __name__ == "__main__":
    demo(prog_name="python -m trimwheel_demo")
