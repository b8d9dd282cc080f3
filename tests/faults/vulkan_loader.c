/* Vulkan loader with faults: stands before the real loader REAL as libvulkan.so.1. While the file VULKAN_LOST_IF exists,
 * the device is lost. VULKAN_BYTES limits the memory that can be allocated on the device. With VULKAN_KIND, the device
 * says that it is of this kind (1 integrated, 2 discrete). */
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef void (*function)(void);
typedef function (*get_function)(void *, const char *);

static void * real(void) {
    static void * library;
    if (library == NULL) {
        library = dlopen(REAL, RTLD_NOW | RTLD_LOCAL);
    }
    return library;
}

/* Members of VkPhysicalDeviceProperties before the name: four numbers and the kind. */
static void change_kind(int32_t * properties) {
    const char * kind = getenv("VULKAN_KIND");
    if (kind != NULL) {
        properties[4] = atoi(kind);
    }
}

static int is_lost(void) {
    const char * path = getenv("VULKAN_LOST_IF");
    return path != NULL && access(path, F_OK) == 0;
}

static int32_t (*real_submit)(void *, uint32_t, const void *, void *);
static int32_t submit(void * queue, uint32_t count, const void * submits, void * fence) {
    return is_lost() ? -4 : real_submit(queue, count, submits, fence); /* VK_ERROR_DEVICE_LOST */
}

static uint64_t n_allocated;
static int32_t (*real_allocate)(void *, const void *, const void *, void *);
static int32_t allocate(void * device, const void * info, const void * allocator, void * memory) {
    /* VkMemoryAllocateInfo: the type, the next structure, the size. */
    const uint64_t size  = *(const uint64_t *) ((const char *) info + 16);
    const char *   limit = getenv("VULKAN_BYTES");
    if (limit != NULL && n_allocated + size > strtoull(limit, NULL, 10)) {
        return -2; /* VK_ERROR_OUT_OF_DEVICE_MEMORY */
    }
    const int32_t result = real_allocate(device, info, allocator, memory);
    n_allocated += result == 0 ? size : 0;
    return result;
}

static void (*real_properties)(void *, int32_t *);
static void properties(void * device, int32_t * out) {
    real_properties(device, out);
    change_kind(out);
}

static void (*real_properties2)(void *, void *);
static void properties2(void * device, void * out) {
    real_properties2(device, out);
    change_kind((int32_t *) ((char *) out + 16));
}

static function replace(const char * name, function found) {
    static const struct {
        const char * name;
        function     replacement;
        function *   original;
    } replaced[] = {
        {"vkQueueSubmit", (function) submit, (function *) &real_submit},
        {"vkAllocateMemory", (function) allocate, (function *) &real_allocate},
        {"vkGetPhysicalDeviceProperties", (function) properties, (function *) &real_properties},
        {"vkGetPhysicalDeviceProperties2", (function) properties2, (function *) &real_properties2},
        {"vkGetPhysicalDeviceProperties2KHR", (function) properties2, (function *) &real_properties2},
    };
    for (size_t i = 0; found != NULL && i < sizeof(replaced) / sizeof(replaced[0]); i++) {
        if (strcmp(name, replaced[i].name) == 0) {
            *replaced[i].original = found;
            return replaced[i].replacement;
        }
    }
    return found;
}

function vkGetInstanceProcAddr(void * instance, const char * name) {
    return replace(name, ((get_function) dlsym(real(), "vkGetInstanceProcAddr"))(instance, name));
}

function vkGetDeviceProcAddr(void * device, const char * name) {
    return replace(name, ((get_function) dlsym(real(), "vkGetDeviceProcAddr"))(device, name));
}

void vkCmdCopyBuffer(void * commands, void * from, void * to, uint32_t count, const void * regions) {
    ((void (*)(void *, void *, void *, uint32_t, const void *)) dlsym(real(), "vkCmdCopyBuffer"))(
        commands, from, to, count, regions);
}

void vkGetPhysicalDeviceFeatures2(void * device, void * features) {
    ((void (*)(void *, void *)) dlsym(real(), "vkGetPhysicalDeviceFeatures2"))(device, features);
}

int32_t vkCreateInstance(const void * info, const void * allocator, void * instance) {
    return ((int32_t (*)(const void *, const void *, void *)) dlsym(real(), "vkCreateInstance"))(
        info, allocator, instance);
}

void vkDestroyInstance(void * instance, const void * allocator) {
    ((void (*)(void *, const void *)) dlsym(real(), "vkDestroyInstance"))(instance, allocator);
}

int32_t vkEnumeratePhysicalDevices(void * instance, uint32_t * count, void * devices) {
    return ((int32_t (*)(void *, uint32_t *, void *)) dlsym(real(), "vkEnumeratePhysicalDevices"))(
        instance, count, devices);
}

void vkGetPhysicalDeviceProperties(void * device, int32_t * out) {
    real_properties = (void (*)(void *, int32_t *)) dlsym(real(), "vkGetPhysicalDeviceProperties");
    properties(device, out);
}
