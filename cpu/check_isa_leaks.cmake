# Fails the build when an object of cpu/*_avx*.cc defines a weak function (an inline one or a
# template instance): the linker keeps one copy of those, and it could be the one with wide
# instructions, in a program that runs on a machine without them.
execute_process(COMMAND ${NM} --defined-only -C ${LIBRARY} OUTPUT_VARIABLE symbols
                COMMAND_ERROR_IS_FATAL ANY)
string(REPLACE ";" "," symbols "${symbols}")
string(REPLACE "\n" ";" symbols "${symbols}")
set(object "")
set(leaks "")
foreach(line IN LISTS symbols)
  if(line MATCHES "^([^ ]+\\.o):$")
    set(object ${CMAKE_MATCH_1})
  elseif(object MATCHES "_avx(2|512)\\.cc\\.o$" AND line MATCHES "^([0-9a-f]+) [Ww] (.+)$")
    set(symbol ${CMAKE_MATCH_2})
    # Markers of the sanitizers and of personality routines hold no code of ours.
    if(NOT symbol MATCHES "^(DW\\.ref\\.|__odr_asan|__asan|__tsan|__ubsan|__sanitizer)")
      string(APPEND leaks "\n  ${object}: ${symbol}")
    endif()
  endif()
endforeach()
if(leaks)
  message(FATAL_ERROR "shared inline code in files compiled for wide instruction sets:${leaks}")
endif()
