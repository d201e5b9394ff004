/* Loaded before bochscpu: functions of a newer C library that it asks for, and another model of CPU than the one that is
 * built in (Cannon Lake, which has AVX-512 but no VNNI). */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#if !__GLIBC_PREREQ(2, 38)
unsigned long long __isoc23_strtoull(const char *text, char **end, int base) { return strtoull(text, end, base); }

int __isoc23_sscanf(const char *text, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int count = vsscanf(text, format, arguments);
    va_end(arguments);
    return count;
}
#endif

/* One of Bochs' functions create_*_cpuid; the test sets it once bochscpu is loaded. */
void *(*cpu_model)(void *cpu);

/* create_corei3_cnl_cpuid(BX_CPU_C *) */
void *_Z23create_corei3_cnl_cpuidP8BX_CPU_C(void *cpu) { return cpu_model(cpu); }
