"""How much memory there is, what a model will take of it, and what to do when it gets tight."""

from ollama_batch.memory.decision import Action, Effect, Guard, GuardDecision
from ollama_batch.memory.engine import EngineView
from ollama_batch.memory.guards import RamGuard, VramGuard
from ollama_batch.memory.learned import LearnedMemory
from ollama_batch.memory.levels import Level
from ollama_batch.memory.plan import MemoryPlan, plan_memory
from ollama_batch.memory.probe import LocalProbe, Probe
from ollama_batch.memory.processes import GpuProcess, gpu_processes
from ollama_batch.memory.recommend import recommend
from ollama_batch.memory.sample import DeviceMemory, EngineMemory, HostMemory, MemorySample, Reading
from ollama_batch.memory.sampler import MemorySampler
from ollama_batch.memory.shape import Layer, ModelShape

__all__ = [
    "Action",
    "DeviceMemory",
    "Effect",
    "EngineMemory",
    "EngineView",
    "GpuProcess",
    "Guard",
    "GuardDecision",
    "HostMemory",
    "Layer",
    "LearnedMemory",
    "Level",
    "LocalProbe",
    "MemoryPlan",
    "MemorySample",
    "MemorySampler",
    "ModelShape",
    "Probe",
    "RamGuard",
    "Reading",
    "VramGuard",
    "gpu_processes",
    "plan_memory",
    "recommend",
]
