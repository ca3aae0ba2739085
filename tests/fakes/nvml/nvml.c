/* libnvidia-ml.so.1 over a plant file: what an unmodified pynvml sees of an emulated node.
 *
 *   cc -shared -fPIC -O1 -Wall -Werror -o libnvidia-ml.so.1 nvml.c -lm
 *   JOULEGATE_PLANT=/path/to/plant LD_LIBRARY_PATH=. python ...
 *
 * The structs repeat gpu_agent/plant_layout.py. Only the calls that gpu_agent/nvml.py makes exist here; any
 * other is a missing symbol, which pynvml reports as "Function Not Found".
 */
#include <fcntl.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CLOCKS = 256, MAX_PIDS = 64, BLOCK = 4096 };
enum { ANY, CLOCK, POWER, ENERGY, TEMPERATURE, REASONS, PROCESSES, LOCK, RESET, CAP, SUPPORTED_CLOCKS };
enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, LIB_RM_VERSION_MISMATCH = 18, UNKNOWN = 999
};
enum { FIELD_POWER_INSTANT = 186, FIELD_ENERGY = 83, MEMORY_CLOCK = 2619 };

struct header { char magic[8]; uint32_t gpus, block; uint64_t generation, driver; };
struct spec {
    char uuid[96], pci[32], name[96];
    double settle, idle_watts, cap_low, cap_default, cap_high, ambient, kelvin_per_watt, thermal_seconds;
    uint32_t compute_major, compute_minor, mig, vgpu, persistence, clock_count, clocks[MAX_CLOCKS];
};
struct request { double at; uint32_t low, high, previous, pid; };
struct work { double energy, at, watts, temperature; uint32_t clock, reasons; };
struct faults {
    int32_t errors[16];
    uint32_t stuck, throttle, reasons, spare;
    double energy_offset, call_seconds;
};
struct gpu {
    struct spec spec;
    double cap;
    volatile uint64_t request_version;
    struct request request[2];
    volatile uint64_t work_version;
    struct work work[2];
    uint32_t pid_count, pids[MAX_PIDS];
    struct faults faults;
};

typedef struct gpu *device;
typedef int ret;

static char *plant;
static size_t plant_size;
static uint64_t generation;
static uint64_t driver; /* version this library belongs to, and one: that of the first initialisation */
static int references;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static ret loaded(void)
{
    if (!references)
        return UNINITIALIZED;
    return ((struct header *)plant)->generation == generation ? SUCCESS : UNKNOWN;
}

/* What this call answers before it looks at the GPU. */
static ret gate(device gpu, int call)
{
    ret code = loaded();
    if (code)
        return code;
    if (!gpu)
        return INVALID_ARGUMENT;
    return gpu->faults.errors[ANY] ? gpu->faults.errors[ANY] : gpu->faults.errors[call];
}

static struct request request_of(device gpu)
{
    for (;;) {
        uint64_t version = gpu->request_version;
        struct request copy = gpu->request[version & 1];
        __sync_synchronize();
        if (gpu->request_version == version)
            return copy;
    }
}

static struct work work_of(device gpu)
{
    for (;;) {
        uint64_t version = gpu->work_version;
        struct work copy = gpu->work[version & 1];
        __sync_synchronize();
        if (gpu->work_version == version)
            return copy;
    }
}

static uint32_t requested_ceiling(device gpu, double t)
{
    struct request r = request_of(gpu);
    if (t < r.at + gpu->spec.settle)
        return r.previous;
    return r.high ? r.high : gpu->spec.clocks[gpu->spec.clock_count - 1];
}

static uint32_t sm_clock(device gpu, double t)
{
    uint32_t ceiling = requested_ceiling(gpu, t), clock = work_of(gpu).clock;
    if (gpu->faults.stuck)
        return gpu->faults.stuck;
    if (gpu->faults.throttle && gpu->faults.throttle < ceiling)
        ceiling = gpu->faults.throttle;
    return clock < ceiling ? clock : ceiling;
}

static void ask(device gpu, uint32_t low, uint32_t high)
{
    double t = now();
    uint64_t version = gpu->request_version + 1;
    struct request *slot = &gpu->request[version & 1];
    slot->previous = requested_ceiling(gpu, t);
    slot->at = t;
    slot->low = low;
    slot->high = high;
    slot->pid = (uint32_t)getpid();
    __sync_synchronize();
    gpu->request_version = version;
}

static void take_time(device gpu)
{
    if (gpu->faults.call_seconds > 0)
        usleep((useconds_t)(gpu->faults.call_seconds * 1e6));
}

ret nvmlInitWithFlags(unsigned flags)
{
    const char *path = getenv("JOULEGATE_PLANT");
    struct stat status;
    int file;
    (void)flags;
    if (references) {
        generation = ((struct header *)plant)->generation;
        references++;
        return SUCCESS;
    }
    if (!path || (file = open(path, O_RDWR | O_CLOEXEC)) < 0)
        return DRIVER_NOT_LOADED;
    if (fstat(file, &status) || status.st_size < BLOCK) {
        close(file);
        return DRIVER_NOT_LOADED;
    }
    plant_size = (size_t)status.st_size;
    plant = mmap(NULL, plant_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (plant == MAP_FAILED || memcmp(plant, "JGPLANT1", 8))
        return DRIVER_NOT_LOADED;
    if (driver && driver != ((struct header *)plant)->driver + 1) {
        munmap(plant, plant_size);
        return LIB_RM_VERSION_MISMATCH;
    }
    driver = ((struct header *)plant)->driver + 1;
    generation = ((struct header *)plant)->generation;
    references = 1;
    return SUCCESS;
}

ret nvmlShutdown(void)
{
    if (!references)
        return UNINITIALIZED;
    if (--references == 0)
        munmap(plant, plant_size);
    return SUCCESS;
}

const char *nvmlErrorString(ret code)
{
    static char text[32];
    snprintf(text, sizeof text, "NVML error %d", code);
    return text;
}

ret nvmlSystemGetDriverVersion(char *text, unsigned length)
{
    snprintf(text, length, "999.00 (plant)");
    return loaded();
}

ret nvmlDeviceGetCount_v2(unsigned *count)
{
    ret code = loaded();
    if (!code)
        *count = ((struct header *)plant)->gpus;
    return code;
}

ret nvmlDeviceGetHandleByIndex_v2(unsigned index, device *gpu)
{
    ret code = loaded();
    if (code)
        return code;
    if (index >= ((struct header *)plant)->gpus)
        return INVALID_ARGUMENT;
    *gpu = (device)(plant + BLOCK * (1 + (size_t)index));
    return (*gpu)->faults.errors[ANY];
}

ret nvmlDeviceGetUUID(device gpu, char *text, unsigned length)
{
    ret code = gate(gpu, ANY);
    if (!code)
        snprintf(text, length, "%s", gpu->spec.uuid);
    return code;
}

ret nvmlDeviceGetName(device gpu, char *text, unsigned length)
{
    ret code = gate(gpu, ANY);
    if (!code)
        snprintf(text, length, "%s", gpu->spec.name);
    return code;
}

struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; };

ret nvmlDeviceGetPciInfo_v3(device gpu, struct pci *pci)
{
    ret code = gate(gpu, ANY);
    if (!code) {
        memset(pci, 0, sizeof *pci);
        snprintf(pci->bus_id, sizeof pci->bus_id, "%.31s", gpu->spec.pci);
    }
    return code;
}

ret nvmlDeviceGetCudaComputeCapability(device gpu, int *major, int *minor)
{
    *major = (int)gpu->spec.compute_major;
    *minor = (int)gpu->spec.compute_minor;
    return gate(gpu, ANY);
}

ret nvmlDeviceGetMigMode(device gpu, unsigned *current, unsigned *pending)
{
    *current = *pending = gpu->spec.mig;
    return gate(gpu, ANY);
}

ret nvmlDeviceGetVirtualizationMode(device gpu, uint64_t *mode)
{
    *mode = gpu->spec.vgpu ? 2 : 0;
    return gate(gpu, ANY);
}

ret nvmlDeviceGetPersistenceMode(device gpu, unsigned *mode)
{
    *mode = gpu->spec.persistence;
    return gate(gpu, ANY);
}

ret nvmlDeviceGetSupportedMemoryClocks(device gpu, unsigned *count, unsigned *clocks)
{
    ret code = gate(gpu, SUPPORTED_CLOCKS);
    unsigned room = *count;
    if (code)
        return code;
    *count = 1;
    if (room < 1 || !clocks)
        return INSUFFICIENT_SIZE;
    clocks[0] = MEMORY_CLOCK;
    return SUCCESS;
}

/* Descending, as NVIDIA's driver lists them. */
ret nvmlDeviceGetSupportedGraphicsClocks(device gpu, unsigned memory, unsigned *count, unsigned *clocks)
{
    ret code = gate(gpu, SUPPORTED_CLOCKS);
    unsigned i, room = *count;
    if (code)
        return code;
    if (memory != MEMORY_CLOCK)
        return NOT_FOUND;
    *count = gpu->spec.clock_count;
    if (room < *count || !clocks)
        return INSUFFICIENT_SIZE;
    for (i = 0; i < *count; i++)
        clocks[i] = gpu->spec.clocks[*count - 1 - i];
    return SUCCESS;
}

ret nvmlDeviceGetMaxClockInfo(device gpu, int type, unsigned *clock)
{
    (void)type;
    *clock = gpu->spec.clocks[gpu->spec.clock_count - 1];
    return gate(gpu, CLOCK);
}

ret nvmlDeviceGetClockInfo(device gpu, int type, unsigned *clock)
{
    ret code = gate(gpu, CLOCK);
    (void)type;
    if (!code)
        *clock = sm_clock(gpu, now());
    return code;
}

ret nvmlDeviceSetGpuLockedClocks(device gpu, unsigned low, unsigned high)
{
    ret code = gate(gpu, LOCK);
    if (code)
        return code;
    if (low > high || high == 0)
        return INVALID_ARGUMENT;
    take_time(gpu);
    ask(gpu, low, high);
    return SUCCESS;
}

ret nvmlDeviceResetGpuLockedClocks(device gpu)
{
    ret code = gate(gpu, RESET);
    if (code)
        return code;
    take_time(gpu);
    ask(gpu, 0, 0);
    return SUCCESS;
}

/* Whole millijoules, as the driver counts. */
ret nvmlDeviceGetTotalEnergyConsumption(device gpu, uint64_t *millijoules)
{
    ret code = gate(gpu, ENERGY);
    struct work w;
    double t = now();
    if (code)
        return code;
    w = work_of(gpu);
    *millijoules = (uint64_t)(1000.0 * (w.energy + w.watts * fmax(0.0, t - w.at) - gpu->faults.energy_offset));
    return SUCCESS;
}

ret nvmlDeviceGetPowerUsage(device gpu, unsigned *milliwatts)
{
    ret code = gate(gpu, POWER);
    if (!code)
        *milliwatts = (unsigned)(1000.0 * work_of(gpu).watts);
    return code;
}

union value { double d; unsigned ui; unsigned long ul; unsigned long long ull; long long sll; };
struct field {
    uint32_t id, scope;
    int64_t timestamp, latency;
    unsigned type, code;
    union value value;
};

ret nvmlDeviceGetFieldValues(device gpu, int count, struct field *fields)
{
    ret code = gate(gpu, POWER);
    int i;
    if (code)
        return code;
    for (i = 0; i < count; i++) {
        uint64_t millijoules = 0;
        fields[i].code = NOT_SUPPORTED;
        if (fields[i].id == FIELD_POWER_INSTANT) {
            fields[i].code = SUCCESS;
            fields[i].type = 1;
            fields[i].value.ui = (unsigned)(1000.0 * work_of(gpu).watts);
        } else if (fields[i].id == FIELD_ENERGY) {
            fields[i].code = (unsigned)nvmlDeviceGetTotalEnergyConsumption(gpu, &millijoules);
            fields[i].type = 3;
            fields[i].value.ull = millijoules;
        }
    }
    return SUCCESS;
}

struct temperature { unsigned version, sensor; int celsius; };

ret nvmlDeviceGetTemperatureV(device gpu, struct temperature *t)
{
    ret code = gate(gpu, TEMPERATURE);
    struct work w;
    double final;
    if (code)
        return code;
    w = work_of(gpu);
    final = gpu->spec.ambient + gpu->spec.kelvin_per_watt * w.watts;
    t->celsius = (int)lround(
        final + (w.temperature - final) * exp(-fmax(0.0, now() - w.at) / gpu->spec.thermal_seconds));
    return SUCCESS;
}

ret nvmlDeviceGetCurrentClocksEventReasons(device gpu, uint64_t *reasons)
{
    ret code = gate(gpu, REASONS);
    if (!code)
        *reasons = work_of(gpu).reasons | gpu->faults.reasons;
    return code;
}

struct process { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; };

ret nvmlDeviceGetComputeRunningProcesses_v3(device gpu, unsigned *count, struct process *processes)
{
    ret code = gate(gpu, PROCESSES);
    unsigned i, room = *count;
    if (code)
        return code;
    *count = gpu->pid_count;
    if (room < *count)
        return INSUFFICIENT_SIZE;
    for (i = 0; i < *count; i++)
        processes[i] = (struct process){gpu->pids[i], 0, ~0u, ~0u};
    return SUCCESS;
}

ret nvmlDeviceGetPowerManagementLimit(device gpu, unsigned *milliwatts)
{
    *milliwatts = (unsigned)(1000.0 * gpu->cap);
    return gate(gpu, POWER);
}

ret nvmlDeviceGetPowerManagementLimitConstraints(device gpu, unsigned *low, unsigned *high)
{
    *low = (unsigned)(1000.0 * gpu->spec.cap_low);
    *high = (unsigned)(1000.0 * gpu->spec.cap_high);
    return gate(gpu, POWER);
}

ret nvmlDeviceSetPowerManagementLimit(device gpu, unsigned milliwatts)
{
    ret code = gate(gpu, CAP);
    if (code)
        return code;
    if (milliwatts < 1000.0 * gpu->spec.cap_low || milliwatts > 1000.0 * gpu->spec.cap_high)
        return INVALID_ARGUMENT;
    gpu->cap = milliwatts / 1000.0;
    return SUCCESS;
}
