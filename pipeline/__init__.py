"""How far should a pretrained image classifier be unfrozen? See README.md."""
