// Atomic operations. Fibres never run at the same time, so a plain read-modify-write is atomic; the check is told of
// it.
#pragma once
#include "fibre.h"

// no_sanitize: the access is reported once, as an atomic, and not again as a read and a write.
#define EMU_RAW __attribute__((no_sanitize("thread"), noinline, unused))
template <class T, class F> static EMU_RAW T emu_update(T* address, F change) {
    emu_touch(address, sizeof(T), EMU_ATOMIC, __builtin_return_address(0));
    T old = *address;
    *address = change(old);
    return old;
}
template <class T> struct emu_same {
    typedef T type;
};  // keeps the second argument out of the deduction of T
#define EMU_ATOMIC_OPERATION(name, expression) \
    template <class T> EMU_HERE T name(T* address, typename emu_same<T>::type v) { \
        return emu_update(address, [=](T old) EMU_RAW { return (T)(expression); }); \
    } \
    template <class T> EMU_HERE T name##_block(T* address, typename emu_same<T>::type v) { \
        return name(address, v); \
    }
EMU_ATOMIC_OPERATION(atomicAdd, old + v)
EMU_ATOMIC_OPERATION(atomicSub, old - v)
EMU_ATOMIC_OPERATION(atomicMax, old > v ? old : v)
EMU_ATOMIC_OPERATION(atomicMin, old < v ? old : v)
EMU_ATOMIC_OPERATION(atomicExch, v)
EMU_ATOMIC_OPERATION(atomicOr, old | v)
EMU_ATOMIC_OPERATION(atomicAnd, old& v)
EMU_ATOMIC_OPERATION(atomicXor, old ^ v)
template <class T> EMU_HERE T
atomicCAS(T* address, typename emu_same<T>::type expected, typename emu_same<T>::type v) {
    return emu_update(address, [=](T old) EMU_RAW { return old == expected ? v : old; });
}
