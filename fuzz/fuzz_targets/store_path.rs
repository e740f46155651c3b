#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narwire::codec::store_path::fuzz_store_path(data));
