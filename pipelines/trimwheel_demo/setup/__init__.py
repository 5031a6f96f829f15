"""From a bare machine to an installed Trimwheel; runs before anything of ours is installed.

`python3 -m trimwheel_demo.setup`, called by the Makefile with the system's python3, so the package
uses the standard library alone, and of ours only what needs no more (`trimwheel_local`'s list of
binaries and its layout), inside functions, after Python's own version was checked.

`checks` looks at the machine, `cached` knows what is there already, `steps` make what is missing,
`lanes` run them side by side and show how far they are, `__main__` has the order of it all.
"""
