#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narwire::store::catalog::fuzz_catalog(data));
