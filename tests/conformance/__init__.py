"""The conformance suite: what every client promises, run against each as a process. clients/conformance.md describes
the drivers."""
