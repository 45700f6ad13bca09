"""`python -m circuitlit VERB key=value ...`."""

from circuitlit.cli.main import main

if __name__ == "__main__":
    main()
