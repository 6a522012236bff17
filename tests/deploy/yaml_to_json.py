"""Prints the documents of the YAML on standard input as one JSON list."""

import json
import sys

import yaml

json.dump([document for document in yaml.safe_load_all(sys.stdin) if document is not None], sys.stdout, default=str)
