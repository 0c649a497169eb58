from robseg.cli import main

main()
