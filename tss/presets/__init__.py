"""Configurations by name: NAME.yaml or NAME.VARIANT.yaml; the first line says what each is for."""
