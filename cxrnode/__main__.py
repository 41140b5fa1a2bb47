"""python -m cxrnode."""

from cxrnode.cli.main import main

if __name__ == "__main__":
    main()
