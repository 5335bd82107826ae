"""Manufactoria."""
from resd.tasks.manufactoria.machine import Verdict, run
from resd.tasks.manufactoria.parser import Factory, ParseError, parse
