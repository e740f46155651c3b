#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narwire::codec::hash::fuzz_hash(data));
