"""Manufactoria: programs of pullers and painters that accept, reject and rewrite tapes."""

from resd.tasks.manufactoria.environment import ManufactoriaEnvironment
from resd.tasks.manufactoria.machine import Verdict, run
from resd.tasks.manufactoria.parser import Factory, ParseError, parse

__all__ = ["Factory", "ManufactoriaEnvironment", "ParseError", "Verdict", "parse", "run"]
