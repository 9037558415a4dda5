// How Python reaches a kernel: a function of plain C that takes the arguments by address, and a description of its
// parameters.
#pragma once
#include <string>
#include <type_traits>
#include <utility>
#include "half.h"

template <class... A, size_t... I> static __attribute__((no_sanitize("thread"), noipa)) void
emu_call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*(std::remove_reference_t<A>*)arguments[I]...);
}
template <class... A> static inline void emu_invoke(void (*kernel)(A...), void** arguments) {
    emu_call(kernel, arguments, std::index_sequence_for<A...>{});
}

// Kind of number as NumPy spells it (f, i, u), then its bytes; x for anything else.
template <class T> static std::string emu_number() {
    const char* kind = std::is_floating_point<T>::value || std::is_same<T, __half>::value ? "f"
                       : std::is_same<T, bool>::value                                     ? "b"
                       : std::is_integral<T>::value ? (std::is_signed<T>::value ? "i" : "u")
                                                    : "x";
    return kind + std::to_string(sizeof(T));
}
template <> std::string emu_number<void>() { return "x0"; }
// A parameter: const pointer, pointer or scalar.
template <class A> static std::string emu_parameter() {
    typedef std::remove_pointer_t<A> pointee;
    if (!std::is_pointer<A>::value) return "s" + emu_number<std::remove_cv_t<A>>() + ",";
    return (std::is_const<pointee>::value ? "c" : "p") + emu_number<std::remove_cv_t<pointee>>() + ",";
}
template <class... A> static inline const char* emu_signature(void (*)(A...)) {
    static std::string text = (std::string() + ... + emu_parameter<A>());
    return text.c_str();
}
static constexpr int emu_first(int first, int = 0, int = 0) { return first; }
#define EMU_KERNEL(name, ...) \
    extern "C" void emu_run_##name(void** arguments) { emu_invoke(name, arguments); } \
    extern "C" const char* emu_signature_##name() { return emu_signature(name); } \
    extern "C" int emu_threads_##name() { return emu_first(__VA_ARGS__); }
