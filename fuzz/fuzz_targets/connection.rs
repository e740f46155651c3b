#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narwire::ring::sim::fuzz_connection(data));
