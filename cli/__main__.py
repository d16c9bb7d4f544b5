"""`python -m rwk.cli` is `rwk`, which `accelerate launch -m rwk.cli` needs."""

from rwk.cli.main import main

if __name__ == "__main__":
    main()
