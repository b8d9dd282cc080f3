// CMakeLists.txt includes this file in llama.cpp's Vulkan module.
//
// The module names types of the extension VK_EXT_layer_settings, which Vulkan headers before 1.3.272 lack (Debian 12 has
// 1.3.239). It uses them only for its validation layer, but passes them to vkCreateInstance in every build, so their
// layout must be that of vulkan_core.h. Newer headers see an empty file.
#include <vulkan/vulkan_core.h>
#ifndef VK_EXT_layer_settings
#include <cstdint>
#include <vector>

namespace vk {

enum class LayerSettingTypeEXT : int32_t { eBool32 = 0 };

struct LayerSettingEXT {
    const char *        pLayerName;
    const char *        pSettingName;
    LayerSettingTypeEXT type;
    uint32_t            valueCount;
    const void *        pValues;
};

struct LayerSettingsCreateInfoEXT {
    explicit LayerSettingsCreateInfoEXT(const std::vector<LayerSettingEXT> & settings) :
        settingCount(static_cast<uint32_t>(settings.size())), pSettings(settings.data()) {}

    VkStructureType         sType = static_cast<VkStructureType>(1000496000);
    const void *            pNext = nullptr;
    uint32_t                settingCount;
    const LayerSettingEXT * pSettings;
};

}  // namespace vk
#endif
