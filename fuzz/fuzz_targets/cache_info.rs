#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narwire::codec::cache_info::fuzz_cache_info(data));
