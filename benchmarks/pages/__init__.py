"""The generated parts of README.md and docs/: one function a table or figure, from the files of results/."""
