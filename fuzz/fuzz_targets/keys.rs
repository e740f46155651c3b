#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narwire::codec::signature::fuzz_keys(data));
