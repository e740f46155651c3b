#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narwire::codec::exposition::fuzz_exposition(data));
