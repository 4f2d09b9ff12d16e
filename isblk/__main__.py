"""`python -m isblk`: the command line, as the supervisor starts it, with the interpreter and the modules it runs itself."""

import sys

from isblk.cli import main

if __name__ == "__main__":
    sys.argv[0] = "isblk"
    main()
