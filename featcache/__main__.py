"""`python -m featcache` is `featcache`."""

from featcache.cli.main import main

if __name__ == "__main__":
    main()
