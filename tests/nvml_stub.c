/* A stand-in for NVIDIA's libnvidia-ml.so.1, with the functions that the probe calls.
 *
 * What it tells stands in the file that NVML_STUB_SCRIPT names, read anew at every call: lines of "name value",
 * such as "count 2", "gpu0.total 17179869184", "gpu1.memory.error 3" (the code that the function returns),
 * "gpu0.pid0 4711", "gpu0.pid0.used 1048576". A handle is the number of a GPU plus one; of the p-th instance of
 * GPU g it is 100 * (g + 1) + p + 1.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long big;
typedef struct { big total, free, used; } memory_1;
typedef struct { unsigned version; big total, reserved, free, used; } memory_2;
typedef struct { unsigned gpu, memory; } utilization;
typedef struct { unsigned pid; big used; unsigned gpu_instance, compute_instance; } process;

enum { SUCCESS = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, NO_SCRIPT = 999 };

static int look(const char *name, big *value)
{
    const char *path = getenv("NVML_STUB_SCRIPT");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[256], key[128];
    int found = 0;
    if (!file)
        return 0;
    while (!found && fgets(line, sizeof line, file))
        if (sscanf(line, "%127s %llu", key, value) == 2 && strcmp(key, name) == 0)
            found = 1;
    fclose(file);
    return found;
}

static const char *name_of(void *handle, const char *what, char *buffer)
{
    size_t number = (size_t)handle;
    if (number >= 100)
        sprintf(buffer, "gpu%zu/mig%zu.%s", number / 100 - 1, number % 100 - 1, what);
    else
        sprintf(buffer, "gpu%zu.%s", number - 1, what);
    return buffer;
}

static int of(void *handle, const char *what, big *value)
{
    char buffer[128];
    return look(name_of(handle, what, buffer), value);
}

static int error_of(void *handle, const char *function)
{
    char what[64];
    big code;
    sprintf(what, "%s.error", function);
    return of(handle, what, &code) ? (int)code : SUCCESS;
}

int nvmlInitWithFlags(unsigned flags)
{
    big code;
    (void)flags;
    return look("init.error", &code) ? (int)code : SUCCESS;
}

int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code)
{
    static char text[32];
    sprintf(text, "stub error %d", code);
    return text;
}

int nvmlDeviceGetCount_v2(unsigned *count)
{
    big value;
    if (look("count.error", &value))
        return (int)value;
    *count = look("count", &value) ? (unsigned)value : 0;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle)
{
    *handle = (void *)(size_t)(index + 1);
    return error_of(*handle, "handle");
}

int nvmlDeviceGetName(void *handle, char *name, unsigned length)
{
    snprintf(name, length, "Stub card %zu", (size_t)handle);
    return error_of(handle, "name");
}

int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending)
{
    big parts;
    if (!of(handle, "parts", &parts))
        return NOT_SUPPORTED;
    *current = *pending = 1;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count)
{
    (void)handle;
    *count = 7;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **part)
{
    big parts;
    if (!of(handle, "parts", &parts) || index >= parts)
        return NOT_FOUND;
    *part = (void *)((size_t)handle * 100 + index + 1);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *handle, memory_1 *memory)
{
    if (error_of(handle, "memory"))
        return error_of(handle, "memory");
    memory->total = memory->free = 0;
    of(handle, "total", &memory->total);
    of(handle, "free", &memory->free);
    memory->used = memory->total - memory->free;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(void *handle, memory_2 *memory)
{
    memory_1 plain;
    int code = error_of(handle, "memory_v2");
    if (memory->version != (sizeof *memory | 2u << 24))
        return INVALID;
    code = code ? code : nvmlDeviceGetMemoryInfo(handle, &plain);
    if (code)
        return code;
    memory->total = plain.total;
    memory->free = plain.free;
    memory->reserved = 300ull << 20;
    memory->used = plain.used - memory->reserved;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(void *handle, utilization *rates)
{
    big value;
    if (!of(handle, "busy", &value))
        return NOT_SUPPORTED;
    rates->gpu = (unsigned)value;
    rates->memory = 0;
    return SUCCESS;
}

static int processes_of(void *handle, const char *kind, unsigned *count, process *found)
{
    unsigned room = *count, number = 0;
    char what[64];
    big pid, used;
    if (error_of(handle, kind))
        return error_of(handle, kind);
    for (;; number++) {
        sprintf(what, "%s%u", kind, number);
        if (!of(handle, what, &pid))
            break;
        if (found && number < room) {
            sprintf(what, "%s%u.used", kind, number);
            found[number].pid = (unsigned)pid;
            found[number].used = of(handle, what, &used) ? used : ~0ull;
            found[number].gpu_instance = found[number].compute_instance = 0;
        }
    }
    *count = number;
    return number > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, process *found)
{
    return processes_of(handle, "pid", count, found);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, process *found)
{
    return processes_of(handle, "drawing", count, found);
}
