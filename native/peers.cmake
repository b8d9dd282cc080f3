# Adds llama-quantize to llama.cpp's own tools. build.py includes this file only in builds of these tools, after
# `project()`, so that a change of it does not change the bundle.
cmake_language(DEFER CALL edgechat_add_peer_tools)

function (edgechat_add_peer_tools)
    get_target_property(type llama-quantize-impl TYPE)
    if (type STREQUAL "SHARED_LIBRARY")
        set_property(TARGET llama-quantize-impl PROPERTY VERSION)
        set_property(TARGET llama-quantize-impl PROPERTY SOVERSION)
        install(TARGETS llama-quantize-impl LIBRARY DESTINATION lib RUNTIME DESTINATION bin)
    endif()
    add_dependencies(peers llama-quantize)
    install(TARGETS llama-quantize RUNTIME DESTINATION bin)
endfunction()
