/* A libnvidia-ml.so.1 for tests: answers nvidia-ml-py from a text file, so that one binary plays every host.
 *
 * The file is fake_nvml.conf beside this library; each line is KEY=VALUE. A key may have * for the GPU and the link; the most special one wins:
 *   gpus=8                          gpu.*.name=NVIDIA H100 80GB HBM3      gpu.*.links=18
 *   gpu.3.link.7.active=0           gpu.*.link.*.remote=0000:05:00.0      gpu.2.link.4.replay=10+3   (10, 13, 16, ... by call)
 *   fail.nvmlInitWithFlags=9        gpu.3.fail.*=15                       gpu.3.fail.nvmlDeviceGetRemappedRows=3
 *   gpu.2.sleep.nvmlDeviceGetPowerUsage=2   (never returns from its second call)               latency_us=20    (every call takes that long)
 *   p2p.0.1=5                       p2p.*.*=0
 *   gpu.*.nvlink5=1      gpu.*.link_fields=0      gpu.2.link.4.recovery_failed=0+1      (a Blackwell GPU has other error fields)
 *   gpu.0.process=4711              gpu.0.process_sm=60      gpu.0.stranger=99      gpu.0.stranger_sm=90      gpu.0.utilisation=100      gpu.0.power_mw=300000
 * Build with -DnvmlDeviceGetX=absent_x to leave a symbol out, as an old driver does.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_KEYS 1024
#define SUCCESS 0
#define INVALID_ARGUMENT 2
#define NOT_SUPPORTED 3
#define INSUFFICIENT_SIZE 7

typedef int ret_t;
struct gpu { int index; };
static struct gpu gpus[64];
static struct { char key[96]; char value[128]; long calls; } table[MAX_KEYS];
static int keys = -1;

static void load(void)
{
    char line[224], path[512] = "";
    Dl_info self;
    if (dladdr(&keys, &self) && self.dli_fname) {
        const char *slash = strrchr(self.dli_fname, '/');
        snprintf(path, sizeof path, "%.*s/fake_nvml.conf", slash ? (int)(slash - self.dli_fname) : 1, slash ? self.dli_fname : ".");
    }
    FILE *file = fopen(path, "r");
    keys = 0;
    for (int i = 0; i < 64; i++) gpus[i].index = i;
    if (!file) return;
    while (keys < MAX_KEYS && fgets(line, sizeof line, file)) {
        char *equal = strchr(line, '=');
        if (line[0] == '#' || !equal) continue;
        *equal = 0;
        snprintf(table[keys].key, sizeof table[keys].key, "%.95s", line);
        snprintf(table[keys].value, sizeof table[keys].value, "%.127s", equal + 1);
        table[keys].value[strcspn(table[keys].value, "\r\n")] = 0;
        keys++;
    }
    fclose(file);
}

static int find(const char *key)
{
    if (keys < 0) load();
    for (int i = 0; i < keys; i++)
        if (!strcmp(table[i].key, key)) return i;
    return -1;
}

/* gpu.G.NAME, then gpu.*.NAME */
static int find_gpu(int gpu, const char *name)
{
    char key[96];
    snprintf(key, sizeof key, "gpu.%d.%s", gpu, name);
    int at = find(key);
    if (at >= 0) return at;
    snprintf(key, sizeof key, "gpu.*.%s", name);
    return find(key);
}

static int find_link(int gpu, int link, const char *name)
{
    char key[96];
    snprintf(key, sizeof key, "link.%d.%s", link, name);
    int at = find_gpu(gpu, key);
    if (at >= 0) return at;
    snprintf(key, sizeof key, "link.*.%s", name);
    return find_gpu(gpu, key);
}

/* A number, or A+B: A at the first call and B more at each later one. */
static unsigned long long number(int at, unsigned long long otherwise)
{
    if (at < 0) return otherwise;
    char *rest;
    unsigned long long value = strtoull(table[at].value, &rest, 0);
    if (*rest == '+') value += strtoull(rest + 1, NULL, 0) * table[at].calls;
    table[at].calls++;
    return value;
}

static unsigned long long of_gpu(void *handle, const char *name, unsigned long long otherwise)
{
    return number(find_gpu(((struct gpu *)handle)->index, name), otherwise);
}

/* What every call does first: its latency, an endless sleep, an ordered failure. */
static ret_t enter(void *handle, const char *name)
{
    char key[96];
    if (keys < 0) load();
    unsigned long latency = number(find("latency_us"), 0);
    if (latency) usleep(latency);
    snprintf(key, sizeof key, "sleep.%s", name);
    int sleeps = handle ? find_gpu(((struct gpu *)handle)->index, key) : find(key);
    if (sleeps >= 0 && ++table[sleeps].calls >= strtol(table[sleeps].value, NULL, 0)) for (;;) sleep(3600);
    snprintf(key, sizeof key, "fail.%s", name);
    int fails = handle ? find_gpu(((struct gpu *)handle)->index, key) : find(key);
    if (fails < 0 && handle) fails = find_gpu(((struct gpu *)handle)->index, "fail.*");
    return fails < 0 ? SUCCESS : (ret_t)number(fails, 0);
}

#define ENTER(handle) do { ret_t entered = enter(handle, __func__); if (entered) return entered; } while (0)
#define TEXT(out, size, at, otherwise) snprintf(out, size, "%s", (at) >= 0 ? table[at].value : (otherwise))
#define COUNTER(function, type, key, otherwise)                                \
    ret_t function(void *gpu, type *out)                                       \
    {                                                                          \
        ENTER(gpu);                                                            \
        *out = of_gpu(gpu, key, otherwise);                                    \
        return SUCCESS;                                                        \
    }

ret_t nvmlInitWithFlags(unsigned flags) { (void)flags; ENTER(NULL); return SUCCESS; }
ret_t nvmlShutdown(void) { ENTER(NULL); return SUCCESS; }
const char *nvmlErrorString(ret_t code) { (void)code; return "fake error"; }

ret_t nvmlSystemGetDriverVersion(char *out, unsigned size)
{
    ENTER(NULL);
    TEXT(out, size, find("driver_version"), "580.65.06");
    return SUCCESS;
}

ret_t nvmlSystemGetNVMLVersion(char *out, unsigned size)
{
    ENTER(NULL);
    TEXT(out, size, find("nvml_version"), "13.580.65");
    return SUCCESS;
}

ret_t nvmlDeviceGetCount_v2(unsigned *out) { ENTER(NULL); *out = number(find("gpus"), 0); return SUCCESS; }

ret_t nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out)
{
    if (keys < 0) load();
    if (index >= number(find("gpus"), 0)) return INVALID_ARGUMENT;
    ENTER(&gpus[index]);
    *out = &gpus[index];
    return SUCCESS;
}

ret_t nvmlDeviceGetUUID(void *gpu, char *out, unsigned size)
{
    char made[64];
    ENTER(gpu);
    int index = ((struct gpu *)gpu)->index;
    snprintf(made, sizeof made, "GPU-%08d-0000-4000-8000-000000000000", index);
    TEXT(out, size, find_gpu(index, "uuid"), made);
    return SUCCESS;
}

ret_t nvmlDeviceGetName(void *gpu, char *out, unsigned size)
{
    ENTER(gpu);
    TEXT(out, size, find_gpu(((struct gpu *)gpu)->index, "name"), "NVIDIA H100 80GB HBM3");
    return SUCCESS;
}

struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; };

ret_t nvmlDeviceGetPciInfo_v3(void *gpu, struct pci *out)
{
    char made[32];
    ENTER(gpu);
    int index = ((struct gpu *)gpu)->index;
    memset(out, 0, sizeof *out);
    snprintf(made, sizeof made, "00000000:%02X:00.0", 0x19 + index * 0x10);
    TEXT(out->bus_id, sizeof out->bus_id, find_gpu(index, "pci"), made);
    return SUCCESS;
}

ret_t nvmlDeviceGetComputeMode(void *gpu, unsigned *out)
{
    ENTER(gpu);
    *out = of_gpu(gpu, "compute_mode", 0);
    return SUCCESS;
}

ret_t nvmlDeviceGetMigMode(void *gpu, unsigned *now, unsigned *next)
{
    ENTER(gpu);
    *now = *next = of_gpu(gpu, "mig", 0);
    return SUCCESS;
}

ret_t nvmlDeviceGetRemappedRows(void *gpu, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failure)
{
    ENTER(gpu);
    *corrected = 0;
    *uncorrected = of_gpu(gpu, "remapped", 0);
    *pending = of_gpu(gpu, "remap_pending", 0);
    *failure = of_gpu(gpu, "remap_failure", 0);
    return SUCCESS;
}

struct spares { unsigned max, high, partial, low, none; };

ret_t nvmlDeviceGetRowRemapperHistogram(void *gpu, struct spares *out)
{
    ENTER(gpu);
    *out = (struct spares){640, 0, 0, of_gpu(gpu, "few_spares", 0), of_gpu(gpu, "no_spares", 0)};
    return SUCCESS;
}

struct repairs { unsigned version, channel, tpc; };

ret_t nvmlDeviceGetRepairStatus(void *gpu, struct repairs *out)
{
    ENTER(gpu);
    out->channel = of_gpu(gpu, "channel_repair", 0);
    out->tpc = of_gpu(gpu, "tpc_repair", 0);
    return SUCCESS;
}

struct sram { unsigned version; unsigned long long counts[11]; unsigned exceeded; };

ret_t nvmlDeviceGetSramEccErrorStatus(void *gpu, struct sram *out)
{
    ENTER(gpu);
    memset(out->counts, 0, sizeof out->counts);
    out->counts[3] = of_gpu(gpu, "sram_uncorrected", 0);
    out->exceeded = of_gpu(gpu, "sram_exceeded", 0);
    return SUCCESS;
}

struct memory { unsigned long long total, free, used; };

ret_t nvmlDeviceGetMemoryInfo(void *gpu, struct memory *out)
{
    ENTER(gpu);
    out->total = of_gpu(gpu, "memory_total_mib", 81559) << 20;
    out->free = of_gpu(gpu, "memory_free_mib", 80000) << 20;
    out->used = out->total - out->free;
    return SUCCESS;
}

struct process { unsigned pid; unsigned long long memory; unsigned instance, compute; };

/* The tier's own process and a stranger: process=PID, stranger=PID, each with NAME_mib and NAME_sm (percent). */
static const char *const holders[][3] = {{"process", "process_mib", "process_sm"}, {"stranger", "stranger_mib", "stranger_sm"}};

ret_t nvmlDeviceGetComputeRunningProcesses_v3(void *gpu, unsigned *count, struct process *out)
{
    unsigned room = *count, found = 0;
    ENTER(gpu);
    for (int i = 0; i < 2; i++) {
        unsigned pid = of_gpu(gpu, holders[i][0], 0);
        if (!pid) continue;
        if (found < room) {
            out[found].pid = pid;
            out[found].memory = of_gpu(gpu, holders[i][1], 70000) << 20;
            out[found].instance = out[found].compute = 0xFFFFFFFF;
        }
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

struct share { unsigned pid; unsigned long long time; unsigned sm, memory, encoder, decoder; };

ret_t nvmlDeviceGetProcessUtilization(void *gpu, struct share *out, unsigned *count, unsigned long long since)
{
    unsigned room = out ? *count : 0, found = 0;
    ENTER(gpu);
    for (int i = 0; i < 2; i++) {
        unsigned pid = of_gpu(gpu, holders[i][0], 0), share = of_gpu(gpu, holders[i][2], 0);
        if (!pid || !share) continue;
        if (found < room) { memset(&out[found], 0, sizeof *out); out[found].pid = pid; out[found].time = since + 1; out[found].sm = share; }
        found++;
    }
    *count = found;
    if (!found) return 6; /* NOT_FOUND */
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

COUNTER(nvmlDeviceGetCurrPcieLinkWidth, unsigned, "pcie_width", 16)
COUNTER(nvmlDeviceGetMaxPcieLinkWidth, unsigned, "pcie_width_max", 16)
COUNTER(nvmlDeviceGetCurrPcieLinkGeneration, unsigned, "pcie_generation", 5)
COUNTER(nvmlDeviceGetMaxPcieLinkGeneration, unsigned, "pcie_generation_max", 5)
COUNTER(nvmlDeviceGetEnforcedPowerLimit, unsigned, "power_limit_mw", 700000)
COUNTER(nvmlDeviceGetPowerUsage, unsigned, "power_mw", 120000)
COUNTER(nvmlDeviceGetPcieReplayCounter, unsigned, "pcie_replays", 0)
COUNTER(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, "event_reasons", 1)

ret_t nvmlDeviceGetMaxClockInfo(void *gpu, unsigned type, unsigned *out)
{
    (void)type;
    ENTER(gpu);
    *out = of_gpu(gpu, "max_sm_clock", 1980);
    return SUCCESS;
}

ret_t nvmlDeviceGetClockInfo(void *gpu, unsigned type, unsigned *out)
{
    (void)type;
    ENTER(gpu);
    *out = of_gpu(gpu, "sm_clock", 1755);
    return SUCCESS;
}

ret_t nvmlDeviceGetTemperatureThreshold(void *gpu, unsigned which, unsigned *out)
{
    (void)which;
    ENTER(gpu);
    *out = of_gpu(gpu, "slowdown_temperature", 92);
    return SUCCESS;
}

ret_t nvmlDeviceGetTemperature(void *gpu, unsigned sensor, unsigned *out)
{
    (void)sensor;
    ENTER(gpu);
    *out = of_gpu(gpu, "temperature", 40);
    return SUCCESS;
}

struct utilisation { unsigned gpu, memory; };

ret_t nvmlDeviceGetUtilizationRates(void *gpu, struct utilisation *out)
{
    ENTER(gpu);
    out->gpu = of_gpu(gpu, "utilisation", 0);
    out->memory = 0;
    return SUCCESS;
}

ret_t nvmlDeviceGetTotalEccErrors(void *gpu, unsigned kind, unsigned counter, unsigned long long *out)
{
    (void)counter;
    ENTER(gpu);
    *out = of_gpu(gpu, kind ? "ecc_uncorrected" : "ecc_corrected", 0);
    return SUCCESS;
}

static ret_t check_link(void *gpu, unsigned link)
{
    return link < of_gpu(gpu, "links", 18) ? SUCCESS : INVALID_ARGUMENT;
}

ret_t nvmlDeviceGetNvLinkState(void *gpu, unsigned link, unsigned *out)
{
    ENTER(gpu);
    if (!of_gpu(gpu, "links", 18)) return NOT_SUPPORTED;
    if (check_link(gpu, link)) return INVALID_ARGUMENT;
    *out = number(find_link(((struct gpu *)gpu)->index, link, "active"), 1);
    return SUCCESS;
}

ret_t nvmlDeviceGetNvLinkRemoteDeviceType(void *gpu, unsigned link, unsigned *out)
{
    ENTER(gpu);
    if (check_link(gpu, link)) return INVALID_ARGUMENT;
    *out = number(find_link(((struct gpu *)gpu)->index, link, "remote_kind"), 2);
    return SUCCESS;
}

ret_t nvmlDeviceGetNvLinkRemotePciInfo_v2(void *gpu, unsigned link, struct pci *out)
{
    char made[32];
    ENTER(gpu);
    if (check_link(gpu, link)) return INVALID_ARGUMENT;
    memset(out, 0, sizeof *out);
    snprintf(made, sizeof made, "00000000:%02X:00.0", 5 + (link % 4));  /* four switches, as on an HGX board */
    TEXT(out->bus_id, sizeof out->bus_id, find_link(((struct gpu *)gpu)->index, link, "remote"), made);
    return SUCCESS;
}

static ret_t link_errors(void *gpu, unsigned link, const char *name, unsigned long long *out)
{
    if (check_link(gpu, link)) return INVALID_ARGUMENT;
    *out = number(find_link(((struct gpu *)gpu)->index, link, name), 0);
    return SUCCESS;
}

ret_t nvmlDeviceGetNvLinkErrorCounter(void *gpu, unsigned link, unsigned counter, unsigned long long *out)
{
    static const char *const names[] = {"replay", "recovery", "crc"};
    ENTER(gpu);
    if (of_gpu(gpu, "nvlink5", 0)) return NOT_SUPPORTED;
    return counter < 3 ? link_errors(gpu, link, names[counter], out) : NOT_SUPPORTED;
}

struct field { unsigned id, scope; long long timestamp, latency; unsigned type; ret_t ret; union { unsigned long long u64; double d; } value; };

ret_t nvmlDeviceGetFieldValues(void *gpu, int count, struct field *fields)
{
    static const char *const names[] = {"replay", "recovery", "crc"};
    static const struct { unsigned id; const char *name; } nvlink5[] = {
        {208, "receive_errors"}, {211, "integrity_errors"}, {213, "recovered"}, {214, "recovery_failed"},
        {219, "effective_errors"}, {221, "symbol_errors"},
        {220, "effective_ber"},
    };
    ENTER(gpu);
    int by_field = of_gpu(gpu, "link_fields", 1);
    for (int i = 0; i < count; i++) {
        struct field *one = &fields[i];
        one->type = 3;
        one->ret = SUCCESS;
        one->value.u64 = 0;
        if (one->id == 230) one->value.u64 = of_gpu(gpu, "recovery_action", 0);
        else if (one->id == 90) one->value.u64 = of_gpu(gpu, "link_speed", 26562);
        else if (one->id >= 161 && one->id <= 163 && by_field) one->ret = link_errors(gpu, one->scope, names[one->id - 161], &one->value.u64);
        else one->ret = NOT_SUPPORTED;
        for (unsigned k = 0; of_gpu(gpu, "nvlink5", 0) && k < sizeof nvlink5 / sizeof *nvlink5; k++)
            if (one->id == nvlink5[k].id) one->ret = link_errors(gpu, one->scope, nvlink5[k].name, &one->value.u64);
        if (one->id == 230 && of_gpu(gpu, "recovery_unsupported", 0)) one->ret = NOT_SUPPORTED;
    }
    return SUCCESS;
}

struct fabric { unsigned version; unsigned char cluster[16]; unsigned status, clique, state, mask; };

ret_t nvmlDeviceGetGpuFabricInfoV(void *gpu, struct fabric *out)
{
    ENTER(gpu);
    out->state = of_gpu(gpu, "fabric_state", 3);
    out->status = of_gpu(gpu, "fabric_status", 0);
    out->mask = of_gpu(gpu, "fabric_mask", 0xAA | 1 << 8);  /* all faults false, configuration right */
    return SUCCESS;
}

static ret_t pair(const char *what, void *one, void *other, unsigned long long otherwise, unsigned *out)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%d.%d", what, ((struct gpu *)one)->index, ((struct gpu *)other)->index);
    int at = find(key);
    if (at < 0) { snprintf(key, sizeof key, "%s.*.*", what); at = find(key); }
    *out = number(at, otherwise);
    return SUCCESS;
}

ret_t nvmlDeviceGetP2PStatus(void *one, void *other, unsigned index, unsigned *out)
{
    ENTER(one);
    return pair(index == 2 ? "p2p" : "p2p_other", one, other, 0, out);
}

ret_t nvmlDeviceGetTopologyCommonAncestor(void *one, void *other, unsigned *out)
{
    ENTER(one);
    return pair("topology", one, other, 40, out);
}
