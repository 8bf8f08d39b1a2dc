"""How much memory there is, what a model will take of it, and what to do when it gets tight."""

from ollama_batch.memory.decision import Effect, Guard, GuardDecision
from ollama_batch.memory.engine import EngineView
from ollama_batch.memory.guards import RamGuard, VramGuard
from ollama_batch.memory.levels import Level
from ollama_batch.memory.probe import LocalProbe, Probe
from ollama_batch.memory.sample import DeviceMemory, EngineMemory, HostMemory, MemorySample, Reading
from ollama_batch.memory.sampler import MemorySampler

__all__ = [
    "DeviceMemory",
    "Effect",
    "EngineMemory",
    "EngineView",
    "Guard",
    "GuardDecision",
    "HostMemory",
    "Level",
    "LocalProbe",
    "MemorySample",
    "MemorySampler",
    "Probe",
    "RamGuard",
    "Reading",
    "VramGuard",
]
