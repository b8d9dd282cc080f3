/* Stands in for the Vulkan loader (libvulkan.so.1) while the module is linked, so that the build needs no loader of the
 * target machine. The module calls only these functions directly; it gets the others from vkGetInstanceProcAddr. */
void vkCmdCopyBuffer(void) {}
void vkGetDeviceProcAddr(void) {}
void vkGetInstanceProcAddr(void) {}
void vkGetPhysicalDeviceFeatures2(void) {}
